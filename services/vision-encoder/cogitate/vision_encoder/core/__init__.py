"""The rules of the vision-encoder: functions of values, without clock, thread or transport."""
