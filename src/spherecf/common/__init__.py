"""What every room may use: files, text from outside, names, arrays, progress."""
