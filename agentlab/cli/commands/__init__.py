"""What each command does, one file per noun; loaded only when its command runs."""
