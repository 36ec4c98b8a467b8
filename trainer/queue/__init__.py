"""The queues that workers take jobs from: the log itself, or NATS JetStream between several processes.

No torch of its own. The log decides which attempt holds a job; a queue only dispatches it.
"""
