"""What this machine can build and run, and what stands in the way: read from files, without importing the libraries."""
