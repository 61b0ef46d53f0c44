"""Many runs: statistics over seeds, and comparisons of recipes. Start reading at `compare`."""
