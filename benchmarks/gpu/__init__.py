"""What is measured on a GPU, in parts of less than ten minutes: see benchmarks/gpu.sh."""
