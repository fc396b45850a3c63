"""`instructlit labels …`: what labelers said, as files for training and for other tools, and how far they agree."""
