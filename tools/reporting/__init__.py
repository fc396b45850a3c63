"""What every report of ours is made of: the page's frame and style, and plots as inline SVG."""
