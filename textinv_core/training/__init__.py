"""Training an embedding: what is set, what is minimised, the loop, and the folder it leaves behind."""
