"""GenerationService's rpcs: a request is checked, admitted, and answered with the events of its mailbox."""
