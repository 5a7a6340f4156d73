"""What a dataset is put through: repeats, kills, races, failing stores, flipped bits (`make soak`)."""
