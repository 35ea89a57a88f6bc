"""What the composition root must know of im-gateway: its names for settings and metrics, its defaults, what it needs.

Rule: names of metrics are the original's where it has one (contract im-gateway, section 12).
"""

from collections.abc import Callable
from typing import Any

from tidegate.profile import Family, Notices, Profile, ProfileSpec
from tidegate.profiles._im_environment import (
    GROUP_TOPICS,
    MEMBERSHIP_TOPICS,
    RECEIPT_TOPICS,
    default_node,
    plain_name,
    read_environment,
)
from tidegate.profiles._im_frames import close_frame, error_frame, template

# Seconds. A device's ack comes in milliseconds, or not before the time-out
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOPICS = tuple(topic for topics in (GROUP_TOPICS, RECEIPT_TOPICS, MEMBERSHIP_TOPICS) for topic in topics.split(","))


def spec(build: Callable[[Any], Profile]) -> ProfileSpec:
    return ProfileSpec(
        name="im-gateway",
        summary="JSON send_msg and ack, an IM service that routes, gRPC pushes that wait for acks, groups by Kafka",
        ws_paths=("/ws",),
        headers=("origin", "authorization"),
        env_prefix="TIDEGATE_",
        env_names={},
        read_environment=read_environment,
        yaml_variables=True,
        defaults=DEFAULTS,
        bus="kafka.url",
        upstreams={
            "auth": "services.auth_url",
            "im": "services.im_url",
            "user": "services.user_url",
            "redis": "redis.url",
            "nodes": "grpc:",
        },
        registry="registry.url",
        services=("im_gateway_servicepb.UimUgatewayUserviceService", "im_gateway_servicepb.GatewayService"),
        needs_token=False,
        metrics=None,
        build=build,
        families=FAMILIES,
        notices=(_notices(sdk=False), _notices(sdk=True)),
        rate_mark=b'"send_msg"',
        silence_code=4408,
        pages={"/health": ("text/plain; charset=utf-8", b"OK")},
    )


def _notices(*, sdk: bool) -> Notices:
    """By the number that `Device.sdk` is."""
    return Notices(
        excess=template(error_frame("RATE_LIMIT_EXCEEDED", "Too many messages", 0, sdk=sdk), sdk=sdk),
        silence=template(close_frame("HEARTBEAT_TIMEOUT", "Nothing was heard of this client", 0, sdk=sdk), sdk=sdk),
        farewell=template(close_frame("SERVER_SHUTDOWN", "Server is shutting down", 0, sdk=sdk), sdk=sdk),
    )


DEFAULTS = {
    "server.port": 8080,
    "node_id": plain_name(default_node()),
    "registry.url": "etcd://localhost:2379",
    "registry.node": default_node(),
    "redis.url": "redis://localhost:6379/0",
    "kafka.group_id": "im-gateway-service",
    "kafka.topics": list(TOPICS),
    "kafka.broadcast_topic": "",
    # the original's 1 KiB would hold a lone message up for the broker's wait
    "kafka.min_bytes": 1,
    "jwt.allowed_issuers": [],
    "ws.max_connections": 1_000_000,
    "ws.max_message_size": 2 * 10_240,
    "ws.message_rate": 100,
    "ws.message_burst": 200,
    "ws.message_rate_per_user": 100,
    # two in the original's minute: who never answers them but is heard between is alive
    "ws.ping_interval": "27s",
    "ws.pong_timeout": "6s",
    "ws.unanswered_pings": 2,
    "ws.outbox_policy": "drop",
    # rooms are large groups, which a user is in by the thousand at most, and never by a wish of a client
    "ws.max_rooms": 10_000,
    "otel.service_name": "im-gateway-service",
}

FAMILIES = (
    Family("im_gateway_active_connections", "Open connections.", engine={"": "connections_now"}),
    Family("im_gateway_kafka_consumer_lag", "Records that wait, by topic.", "topic", source="bus_lag"),
    Family("im_gateway_offline_queue_size", "Read receipts that this node has stored for users who were offline."),
    Family("im_gateway_total_connections_total", "Connections accepted.", engine={"": "connections"}),
    Family("im_gateway_connection_errors_total", "Connections whose token was not accepted."),
    Family("im_gateway_messages_delivered_total", "Pushed messages that a device has, counted once a device."),
    Family("im_gateway_messages_failed_total", "Devices that a pushed message did not reach, or that did not say so."),
    Family("im_gateway_ack_pending_total", "Acks that were waited for."),
    Family("im_gateway_ack_success_total", "Acks that came in time."),
    Family("im_gateway_ack_timeouts_total", "Acks that did not."),
    Family("im_gateway_ack_late_total", "Acks that came after their time-out."),
    Family("im_gateway_ack_unknown_total", "Acks that nobody waited for."),
    Family(
        "im_gateway_cross_gateway_forward_total",
        "Calls to other nodes, by kind, result and reason of a failure.",
        "kind,result,reason",
    ),
    Family("im_gateway_kafka_consumer_errors_total", "Records that were skipped, by topic.", "topic"),
    Family("im_gateway_duplicate_messages_total", "Pushes of a message whose ack was awaited already."),
    Family("im_gateway_multi_device_deliveries_total", "Pushes to more than one device."),
    Family("im_gateway_group_messages_delivered_total", "Messages of groups, counted once a member who is here."),
    Family("im_gateway_group_members_fanout_total", "Members who are here, summed over messages of groups."),
    Family("im_gateway_cache_hits_total", "Look-ups of groups that were known here."),
    Family("im_gateway_cache_misses_total", "Look-ups of groups that were not."),
    Family(
        "im_gateway_rate_limited_total",
        "send_msg beyond a user's rate.",
        engine={"": "refused.message_rate"},
    ),
    Family("im_gateway_breaker_state", "0 closed, 1 open, by target.", "target", source="circuits"),
    Family(
        "im_gateway_message_delivery_latency_seconds",
        "From a PushMessage to its last ack, or its time-out.",
        buckets=BUCKETS,
    ),
    Family(
        "im_gateway_cross_gateway_forward_latency_seconds",
        "Calls to other nodes, by kind.",
        "kind",
        source="seconds:nodes",
    ),
)
