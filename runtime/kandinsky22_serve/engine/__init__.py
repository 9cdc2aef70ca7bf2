"""The process that computes, and what watches over it: native code that crashes must not take the queue along."""
