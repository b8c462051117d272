"""The gateway over real sockets, before a scripted aggregator and a fake vision-encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from cogitate.kit.channels import from_rpc_error
from cogitate.kit.errors import CogitateError, NoEndpoint
from cogitate.v1 import (
    common_pb2,
    gateway_service_pb2,
)
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import Raise, Step
from tests.fakes.front import endless, mesh
from tests.fakes.vision import png

pytestmark = pytest.mark.contract

UNKNOWN_FIELD = b"\xfa\x7f\x03new"  # field 2047, a string


def asking(text: str = "What?", *images: bytes, **fields: Any) -> pb2.ContemplateRequest:
    """A question with images."""
    parts = [common_pb2.Part(text=text)]
    parts += [common_pb2.Part(image=common_pb2.ImagePart(data=data)) for data in images]
    question = common_pb2.Message(role=common_pb2.ROLE_USER, parts=parts)
    return pb2.ContemplateRequest(spec=pb2.ContemplationSpec(conversation=[question], **fields))


async def refusal(call: Any) -> CogitateError:
    """The error a stream ends with before its first event."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            raise AssertionError("an event came")
    return from_rpc_error(caught.value)


async def test_events_pass_through_in_order_and_the_image_is_stored() -> None:
    async with mesh() as m:
        image = png(10, 20)
        call = m.contemplation.Contemplate(asking("Sum?", image, image), timeout=5)
        events = [response.event async for response in call]
        assert ["accepted", "round_started", "verdict"] == [e.WhichOneof("event") for e in events]
        assert [1, 2, 3] == [e.event_number for e in events]
        (seen,) = m.aggregator.requests
        stored = [part.image for part in seen.spec.conversation[0].parts if part.image.digest]
        assert 1 == m.vision.puts, "the same bytes are stored once"
        assert 2 == len(stored)
        assert not any(one.data for one in stored)
        assert (10, 20) == (stored[0].width_px, stored[0].height_px)
        assert "mini" == seen.spec.model


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED])
async def test_an_image_whose_store_shuts_down_is_stored_by_the_next(code: grpc.StatusCode) -> None:
    async with mesh() as m:
        m.vision.aborts = [code]
        call = m.contemplation.Contemplate(asking("Sum?", png(10, 20)), timeout=5)
        assert [r.event.event_number async for r in call] == [1, 2, 3]
        m.vision.aborts = [code, code]  # tried again once only
        error = await refusal(m.contemplation.Contemplate(asking("?", png(1, 2)), timeout=5))
        assert error.code in ("INTERNAL", "UNAVAILABLE")


async def test_events_are_relayed_as_bytes() -> None:
    """A field this build does not know reaches the client."""

    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        event = pb2.ContemplationEvent(verdict=common_pb2.Verdict(answer="x"))
        event.MergeFromString(UNKNOWN_FIELD)
        return (event,)

    async with mesh(script) as m:
        call = m.contemplation.Contemplate(asking(), timeout=5)
        (event,) = [response.event async for response in call]
        assert UNKNOWN_FIELD in event.SerializeToString()


async def test_the_deadline_is_attached() -> None:
    async with mesh(max_duration_s=20.0) as m:
        async for _ in m.contemplation.Contemplate(asking(), timeout=7):
            pass
        async for _ in m.contemplation.Contemplate(asking()):
            pass
        with_one, without = m.aggregator.deadlines_s
        assert 6 < with_one < 7
        assert 20 < without <= 30.5


async def test_tenant_metadata_of_a_client_is_not_believed() -> None:
    async with mesh() as m:
        call = m.contemplation.Contemplate(
            asking(), timeout=5, metadata=(("x-cogitate-tenant", "victim"),)
        )
        async for _ in call:
            pass
        assert "default" == m.aggregator.metadata[0]["x-cogitate-tenant"]


async def test_a_bad_spec_names_its_fields_and_reaches_nobody() -> None:
    async with mesh() as m:
        error = await refusal(m.contemplation.Contemplate(asking("  ", agent_count=65), timeout=5))
        assert ("INVALID_ARGUMENT", "INVALID_REQUEST") == (error.code, error.reason)
        assert "spec.conversation[0].parts" == error.field
        assert "agent_count is 65, it must be 1 to 64" in error.message
        assert not m.aggregator.requests


@pytest.mark.parametrize("agent_count", [1, 64])
async def test_agent_count_at_the_edge(agent_count: int) -> None:
    async with mesh() as m:
        async for _ in m.contemplation.Contemplate(asking(agent_count=agent_count), timeout=5):
            pass
        assert agent_count == m.aggregator.requests[0].spec.agent_count


async def test_bad_images_come_back_as_what_they_are() -> None:
    async with mesh(max_image_bytes=1000, max_image_pixel_count=100) as m:
        for image, words in (
            (b"GIF99 lies", "not a PNG"),
            (png(1, 1, b"x" * 1000), "bytes, the limit is 1000"),
            (png(101, 1), "has 101 pixels"),
        ):
            error = await refusal(m.contemplation.Contemplate(asking("?", image), timeout=5))
            assert "INVALID_ARGUMENT" == error.code
            assert words in error.message
        assert not m.aggregator.requests
        fine = asking("?", png(100, 1, b"x" * 976))
        async for _ in m.contemplation.Contemplate(fine, timeout=5):
            pass
        assert 1 == len(m.aggregator.requests)


@pytest.mark.parametrize(
    ("service", "knob"),
    [("aggregator", "aggregator_address"), ("vision-encoder", "vision_encoder_address")],
)
async def test_a_service_that_is_down_is_named(service: str, knob: str) -> None:
    async with mesh(**{knob: "127.0.0.1:1"}) as m:
        error = await refusal(m.contemplation.Contemplate(asking("?", png(1, 1)), timeout=5))
        assert ("UNAVAILABLE", "UNAVAILABLE") == (error.code, error.reason)
        assert f"the {service} does not answer" in error.message
        assert "cogitate up" in error.message
        assert service == error.metadata["service"]
        assert error.retryable


async def test_an_error_of_the_aggregator_keeps_its_reason() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return (Raise(NoEndpoint("all endpoints are full", retry_after_s=2.0)),)

    async with mesh(script) as m:
        error = await refusal(m.contemplation.Contemplate(asking(), timeout=5))
        assert "NO_ENDPOINT" == error.reason
        assert "all endpoints are full" == error.message
        assert 2.0 == error.retry_after_s


async def test_a_client_that_leaves_cancels_upstream() -> None:
    async with mesh(endless) as m:
        call = m.contemplation.Contemplate(asking(), timeout=10)
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            await m.aggregator.cancelled.wait()


async def test_a_client_that_stops_reading_stops_the_aggregator() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        big = pb2.ContemplationEvent(steered=pb2.Steered())
        big.steered.message.parts.add(text="x" * 10_000)
        return [pb2.ContemplationEvent(accepted=pb2.Accepted()), *[big] * 3000]

    async with mesh(script) as m:
        call = m.contemplation.Contemplate(asking(), timeout=10)
        await call.read()
        before = -1
        async with asyncio.timeout(10):
            while before != m.aggregator.sent:
                before = m.aggregator.sent
                await asyncio.sleep(0.4)
        assert before < 2500, "30 MB would have been buffered"
        call.cancel()


async def test_a_question_without_a_stream_is_answered_by_its_verdict() -> None:
    async with mesh() as m:
        asked = gateway_service_pb2.AskRequest(spec=asking("Sum?", png(4, 4)).spec)
        told = await m.gateway.Ask(asked, timeout=5)
        assert told.verdict.answer == "42." and told.contemplation_id in m.aggregator.played
        (seen,) = m.aggregator.requests
        assert "deltas" in seen.filter.excluded_events
        assert not {"accepted", "verdict", "failed"} & set(seen.filter.excluded_events)


@pytest.mark.parametrize(
    ("ending", "code", "reason"),
    [
        (
            pb2.ContemplationEvent(
                failed=pb2.Failed(code=9, reason="NO_QUORUM", message="they differ")
            ),
            "FAILED_PRECONDITION",
            "NO_QUORUM",
        ),
        (
            pb2.ContemplationEvent(cancelled=pb2.ContemplationCancelled()),
            "CANCELLED",
            "CANCELLED",
        ),
        (Raise(NoEndpoint("all are gone", retry_after_s=1)), "UNAVAILABLE", "NO_ENDPOINT"),
    ],
)
async def test_a_question_without_a_stream_ends_with_its_status(
    ending: Step, code: str, reason: str
) -> None:
    async with mesh(lambda _: (ending,)) as m:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.gateway.Ask(gateway_service_pb2.AskRequest(spec=asking().spec), timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (code, reason)


async def test_a_question_without_a_stream_ends_with_its_call_and_has_no_tools() -> None:
    async with mesh(endless) as m:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await m.gateway.Ask(gateway_service_pb2.AskRequest(spec=asking().spec), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 5)
        spec = asking().spec
        spec.client_tools.add(name="weather")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await m.gateway.Ask(gateway_service_pb2.AskRequest(spec=spec), timeout=5)
        assert from_rpc_error(refused.value).field == "spec.client_tools"
        assert len(m.aggregator.requests) == 1


async def test_attach_goes_on_after_a_number() -> None:
    async with mesh() as m:
        async for _ in m.contemplation.Contemplate(asking(), timeout=5):
            pass
        (id,) = m.aggregator.played
        request = pb2.AttachRequest(contemplation_id=id, after_event_number=1)
        rest = [r.event.event_number async for r in m.contemplation.Attach(request, timeout=5)]
        assert [2, 3] == rest
        request.after_event_number = 99
        assert "OUT_OF_RANGE" == (await refusal(m.contemplation.Attach(request, timeout=5))).code
        request.after_event_number = -1
        error = await refusal(m.contemplation.Attach(request, timeout=5))
        assert "after_event_number" == error.field
        request.contemplation_id = "../x"
        error = await refusal(m.contemplation.Attach(request, timeout=5))
        assert "contemplation_id" == error.field


async def test_short_calls_are_forwarded_and_checked() -> None:
    async with mesh() as m:
        async for _ in m.contemplation.Contemplate(asking(), timeout=5):
            pass
        (id,) = m.aggregator.played
        got = await m.contemplation.GetContemplation(
            pb2.GetContemplationRequest(contemplation_id=id), timeout=5
        )
        assert id == got.summary.contemplation_id
        listed = await m.contemplation.ListContemplations(
            pb2.ListContemplationsRequest(page_size=1000), timeout=5
        )
        assert 1 == len(listed.contemplations)
        for call in (
            m.contemplation.GetContemplation(pb2.GetContemplationRequest(), timeout=5),
            m.contemplation.ListContemplations(
                pb2.ListContemplationsRequest(page_size=1001), timeout=5
            ),
            m.contemplation.SteerContemplation(
                pb2.SteerContemplationRequest(contemplation_id=id), timeout=5
            ),
            m.contemplation.SubmitToolResult(
                pb2.SubmitToolResultRequest(contemplation_id=id), timeout=5
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.contemplation.GetContemplation(
                pb2.GetContemplationRequest(contemplation_id="nobody"), timeout=5
            )
        assert "NOT_FOUND" == from_rpc_error(caught.value).reason


async def test_blobs_go_up_and_come_down() -> None:
    async with mesh(max_image_bytes=3000) as m:
        data = png(7, 9, b"x" * 2000)

        async def chunks(data: bytes) -> AsyncIterator[gateway_service_pb2.UploadBlobRequest]:
            for start in range(0, len(data), 700):
                yield gateway_service_pb2.UploadBlobRequest(chunk=data[start : start + 700])

        image = (await m.gateway.UploadBlob(chunks(data), timeout=5)).image
        assert (7, 9) == (image.width_px, image.height_px)
        image.box.CopyFrom(common_pb2.Box(x1_permille=500, y1_permille=1000))
        request = gateway_service_pb2.DownloadBlobRequest(image=image)
        parts = [part async for part in m.gateway.DownloadBlob(request, timeout=5)]
        assert data == b"".join(part.chunk for part in parts)
        assert "image/png" == parts[0].media_type
        assert [(0, 0, 500, 1000)] == m.vision.boxes
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.gateway.UploadBlob(chunks(png(7, 9, b"x" * 3000)), timeout=5)
        assert "BAD_IMAGE" == from_rpc_error(caught.value).reason
        request.image.digest = "sha256:nonsense"
        error = await refusal(m.gateway.DownloadBlob(request, timeout=5))
        assert "image.digest" == error.field


async def test_models_fleet_and_limits() -> None:
    async with mesh() as m:
        models = await m.gateway.ListModels(gateway_service_pb2.ListModelsRequest(), timeout=5)
        (model,) = models.models
        assert ("mini", True, 1, 32) == (
            model.name,
            model.vision,
            model.endpoint_count,
            model.max_sequence_count,
        )
        fleet = await m.gateway.DescribeFleet(gateway_service_pb2.DescribeFleetRequest(), timeout=5)
        assert (2, 3) == (len(fleet.endpoints), fleet.lease_count)
        info = await m.gateway.GetServerInfo(gateway_service_pb2.GetServerInfoRequest(), timeout=5)
        assert (64, 120) == (info.limits.max_agent_count, info.limits.max_duration.seconds)
        assert "verified" in info.quorums


async def test_garbage_is_refused_with_a_fixed_text() -> None:
    async with mesh() as m, grpc.aio.insecure_channel(m.address) as channel:
        call = channel.unary_stream("/cogitate.v1.ContemplationService/Contemplate")
        error = await refusal(call(b"\xff\xff\xff", timeout=5))
        assert "the request is not a valid message" == error.message
