"""What all nodes share: checks of inputs, messages to the page, progress, plots, fonts, types of the wires."""
