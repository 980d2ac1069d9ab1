"""What a run says of itself: numbers in files, speed, a progress line, the loss curve."""
