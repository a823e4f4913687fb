"""From paired pictures to two LoRAs, and the choice of the step to subtract at."""
