"""What all reports share: the page's frame and style, and plots as inline SVG."""
