"""The tools and the rules around them: functions of values, without clock, thread, transport."""
