"""What a run would do on machines that are not here."""
