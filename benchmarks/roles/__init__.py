"""What the benchmarks run as processes of their own."""
