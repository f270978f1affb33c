"""What runs on the host under test itself: with any Python, and nothing but its standard library."""
