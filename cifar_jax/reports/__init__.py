"""What people look at. `plots` draws comparisons of runs; it needs the extra `report`."""
