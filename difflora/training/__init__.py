"""From an idea to a pair of LoRAs: the paired data set, the commands that train on it, the steps to choose from."""
