"""Routes whose body pydantic parses itself: from bytes to function, FastAPI takes longer than the parsing."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError


class BodyRoute(APIRoute):
    """A route that takes a body, and otherwise nothing but parts of its path as they stand there.

    FastAPI documents it as any other; those without a body it serves itself.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            try:
                body = model.model_validate_json(await request.body())
            except ValidationError as error:
                problems = error.errors(include_url=False, include_context=False, include_input=False)
                raise RequestValidationError([{**p, "loc": ("body", *p["loc"])} for p in problems]) from error
            response: Response = await self.endpoint(body, **request.path_params)
            return response

        return handle
