# Tests of dispatch and what it is made of. They bring their own double of the NNG server.
kvpool_test(test_tensor unit SOURCES test_tensor.c LIBS kvpool_daemon)
kvpool_test(test_order unit SOURCES test_order.c LIBS kvpool_daemon)
kvpool_test(test_engine unit SOURCES test_engine.c LIBS kvpool_daemon)
kvpool_test(test_session unit SOURCES test_session.c fixture.c LIBS kvpool_daemon)
kvpool_test(test_dispatch unit SOURCES test_dispatch.c fixture.c LIBS kvpool_daemon)
