"""Leave a model, its data and every random generator as they were found."""
