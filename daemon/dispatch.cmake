# Source files of dispatch, relative to this folder.
set(KVPOOL_DISPATCH_SOURCES
    cost.c
    dispatch.c
    engine.c
    fdsock.c
    groups.c
    histogram.c
    job.c
    metrics.c
    observe.c
    ops_attn.c
    ops_fd.c
    ops_pool.c
    ops_prefix.c
    ops_seq.c
    ops_session.c
    ops_step.c
    ops_trace.c
    order.c
    pipes.c
    pools.c
    presence.c
    region.c
    sched.c
    session.c
    session_access.c
    session_grace.c
    slice.c
    stats.c
    step_clock.c
    tensor.c
    trace.c
    trace_pipe.c
    turns.c
)
# What they link beside the packages of kvpool_daemon: sqrtf.
set(KVPOOL_DISPATCH_LIBS m)
