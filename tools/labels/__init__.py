"""`instructlit labels …`: labels as files for training and for other tools, and the labelers' agreement."""
