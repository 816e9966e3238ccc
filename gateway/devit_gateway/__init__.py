"""HTTP face, all day: requests of the Open Inference Protocol become questions to a fusion node."""
