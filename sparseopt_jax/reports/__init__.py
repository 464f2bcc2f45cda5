"""What to read before, while and after training: tables, metrics, pictures, bytes."""
