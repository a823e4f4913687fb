"""From an idea to a pair of LoRAs: the paired dataset, the commands that train on it, the checkpoints to choose from."""
