"""Every error that OpenAI answers with, by code: status, type and message."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

SHAPE_HINT = "See https://platform.openai.com/docs/guides/error-codes/api-errors."


class ErrorShape(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the taxonomy. `code` is what the body carries, null for some."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None


class ApiError(Exception):
    """A request that ends in an error body; one place in the server turns it into a response."""

    def __init__(self, shape: ErrorShape, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(shape.message)
        self.shape = shape
        self.headers = dict(headers or {})


def _row(status: int, kind: str, code: str | None, message: str, param: str | None = None) -> ErrorShape:
    return ErrorShape(status=status, type=kind, code=code, message=message, param=param)


_BAD = "invalid_request_error"
_BILLING = "insufficient_quota"

# The key is what a fault orders; it differs from the code only where the body's code is null.
ERRORS: Final[Mapping[str, ErrorShape]] = {
    "invalid_api_key": _row(401, _BAD, "invalid_api_key", "Incorrect API key provided."),
    "ip_not_authorized": _row(401, _BAD, "ip_not_authorized", "Your IP address is not authorized to use this project."),
    "unsupported_country_region_territory": _row(
        403,
        "request_forbidden",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    "insufficient_permissions": _row(
        403, _BAD, "insufficient_permissions", "You have insufficient permissions for this operation."
    ),
    "model_not_found": _row(404, _BAD, "model_not_found", "The model does not exist or you do not have access to it."),
    "not_found": _row(404, _BAD, None, "No such object."),
    "invalid_request": _row(400, _BAD, None, "We could not parse the JSON body of your request."),
    "context_length_exceeded": _row(
        400,
        _BAD,
        "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in more."
        " Please reduce the length of the messages.",
        "messages",
    ),
    "service_tier_not_allowed": _row(
        400, _BAD, None, "The requested service tier is not allowed for this project.", "service_tier"
    ),
    "invalid_prompt": _row(400, _BAD, "invalid_prompt", "The request was rejected by our safety system."),
    "content_policy_violation": _row(
        400, _BAD, "content_policy_violation", "Your request was rejected as a result of our safety system."
    ),
    "conflict": _row(409, _BAD, "conflict", "The resource was changed by another request."),
    "request_timeout": _row(408, "timeout", "request_timeout", "The request timed out."),
    "payload_too_large": _row(413, _BAD, None, "The request body is too large."),
    "unprocessable": _row(422, _BAD, None, "The request could not be processed."),
    "rate_limit_exceeded": _row(
        429,
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached in organization org-mock on requests per min (RPM). Please try again later.",
    ),
    "slow_down": _row(
        429, "rate_limit_error", "slow_down", "Traffic grew too fast. Please slow down and ramp up gradually."
    ),
    "insufficient_quota": _row(
        429,
        _BILLING,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "credit_balance_exhausted": _row(429, _BILLING, "credit_balance_exhausted", "Your credit balance is exhausted."),
    "organization_spend_limit_exceeded": _row(
        429, _BILLING, "organization_spend_limit_exceeded", "Your organization reached its spend limit."
    ),
    "project_spend_limit_exceeded": _row(
        429, _BILLING, "project_spend_limit_exceeded", "This project reached its spend limit."
    ),
    "organization_usage_limit_exceeded": _row(
        429, _BILLING, "organization_usage_limit_exceeded", "Your organization reached its usage limit."
    ),
    "billing_hard_limit_reached": _row(
        429, _BILLING, "billing_hard_limit_reached", "Billing hard limit has been reached."
    ),
    "resource_unavailable": _row(
        429, "resource_unavailable", "resource_unavailable", "Flex capacity is not available at the moment."
    ),
    "server_error": _row(
        500,
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    "bad_gateway": _row(502, "server_error", None, "Bad gateway."),
    "server_is_overloaded": _row(
        503,
        "service_unavailable_error",
        "server_is_overloaded",
        "Our servers are currently overloaded. Please try again later.",
    ),
    "gateway_timeout": _row(504, "server_error", None, "The gateway timed out."),
}


def error_body(shape: ErrorShape) -> dict[str, Any]:
    """Write an error as its JSON body; all four keys are always there."""
    return {"error": {"message": shape.message, "type": shape.type, "param": shape.param, "code": shape.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Refuse a request that is malformed."""
    return ApiError(_row(400, _BAD, code, message, param))


def missing(param: str) -> ApiError:
    """Refuse a request that lacks a required parameter."""
    return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def not_found(kind: str, identifier: str) -> ApiError:
    """Say that a stored object does not exist."""
    return ApiError(_row(404, _BAD, None, f"No such {kind}: {identifier}", "id"))


def unknown_url(method: str, path: str) -> ApiError:
    """Say that a path is not part of the API."""
    return ApiError(_row(404, _BAD, None, f"Invalid URL ({method} {path})"))


def wrong_method(method: str, path: str) -> ApiError:
    """Say that a path exists, with another method."""
    message = f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)"
    return ApiError(_row(405, _BAD, "method_not_supported", message))
