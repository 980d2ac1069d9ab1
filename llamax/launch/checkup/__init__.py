"""What `llamax doctor` looks at on one machine, one file per part of it."""
