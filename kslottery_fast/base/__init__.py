"""What every room may use: errors that a person can act on, files written whole, tensors sharded over processes."""
