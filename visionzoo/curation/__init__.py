"""What is wrong with data, and what to label next."""
