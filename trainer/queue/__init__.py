"""Where workers get their jobs: the log itself, or NATS JetStream between several processes.

No torch of its own; the log decides who holds a job, the queue only hands it out.
"""
