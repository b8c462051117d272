"""A mesh on this machine: what runs in it (`plan`), where it is noted (`state`), how it runs
(`processes`), and how a command finds or makes one (`access`)."""
