"""What is promised, how it is kept, and how people see and hear of it."""
