"""The pages: settings, sign-in and sign-up, and reference."""

from __future__ import annotations

from litestar.di import Provide

from keyman.http.document import openapi_document
from keyman.http.guards import authenticate, provide_origin
from keyman.http.limit import limit_writes
from keyman.http.requests import CALLER, Routes
from keyman.planes.management.web import (
    account,
    account_delete,
    activity,
    applications,
    connected,
    key_actions,
    key_check,
    key_form,
    key_page,
    key_selected,
    key_several,
    key_use,
    keys,
    oidc,
    portal,
    reference,
    sign_in,
    static,
    tokens,
)
from keyman.planes.management.web.own_keys import provide_own_keys
from keyman.planes.management.web.pages import provide_visit


def router() -> Routes:
    """Return the routes of all pages. Each call returns new ones, because a route belongs to one application.

    The state of the application must contain `pages`.
    """
    return Routes(
        "/",
        route_handlers=[
            sign_in.door,
            sign_in.sign_in_page,
            sign_in.sign_in,
            sign_in.sign_up_page,
            sign_in.sign_up,
            sign_in.sign_out,
            oidc.start,
            oidc.callback,
            oidc.choice_page,
            oidc.link,
            oidc.continue_as_new,
            oidc.back_channel_logout,
            keys.show_list,
            key_page.key_page,
            key_form.new_form,
            key_form.create,
            key_several.several_form,
            key_several.several,
            key_form.edit_form,
            key_form.edit,
            key_use.use_page,
            key_check.check,
            key_selected.selected_form,
            key_selected.selected,
            key_actions.pause_form,
            key_actions.pause,
            key_actions.default_form,
            key_actions.make_default,
            key_actions.delete_form,
            key_actions.delete,
            tokens.show_list,
            tokens.new_form,
            tokens.create,
            tokens.revoke_form,
            tokens.revoke,
            portal.left_page,
            portal.arrival_page,
            portal.arrive,
            account.settings_page,
            account.shortcuts,
            activity.show_activity,
            applications.show_list,
            applications.block,
            applications.unblock,
            account.show_account,
            account.change_password,
            account.choose_display,
            connected.show_list,
            connected.connect,
            connected.unlink_form,
            connected.unlink,
            connected.sign_in_again,
            account.end_other_sessions,
            account.end_session,
            account_delete.delete_form,
            account_delete.delete,
            account_delete.deleted,
            reference.problem_index,
            reference.problem_page,
            reference.reference,
            openapi_document,
            static.static_file,
        ],
        guards=[authenticate, limit_writes],
        dependencies={
            "caller": CALLER,
            "origin": Provide(provide_origin),
            "visit": Provide(provide_visit),
            "own": Provide(provide_own_keys),
        },
    )
