"""What is due leaves here: one HTTP request in, one outcome out."""
