"""Measurements of Generation: throughput, latency and overhead against diffusers' own pipeline (`diffusers_baseline`)
and bare loops, on one workload."""
