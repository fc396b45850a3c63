"""`instructlit label`: the web application in which people write, rate and rank, and the commands around it."""
