"""What two machines agree on, and how they talk."""
