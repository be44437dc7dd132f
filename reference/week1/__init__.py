"""Week 1: from attention to text."""
