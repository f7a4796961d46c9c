// An application uses a user's key: through the gateway, which does not show it, and through the resolver, which does.
// `gateway.ts` and `resolver.ts` are generated from the OpenAPI documents of these planes: see docs/reference/typescript.md.

import createClient from "openapi-fetch";
import type { paths as GatewayPaths } from "./gateway.js";
import type { paths as ResolverPaths } from "./resolver.js";

const headers = { Authorization: `Bearer ${process.env["KEYMAN_APP_TOKEN"]}` };
const user = Number(process.env["USER_ID"] ?? "1");

const gateway = createClient<GatewayPaths>({
  baseUrl: process.env["KEYMAN_GATEWAY_URL"] ?? "http://127.0.0.1:8002",
  headers,
});
const resolver = createClient<ResolverPaths>({
  baseUrl: process.env["KEYMAN_RESOLVER_URL"] ?? "http://127.0.0.1:8001",
  headers,
});

// The provider makes this answer, so the type is not known here.
const models = await gateway.GET("/openai/v1/models", { params: { header: { "Keyman-User": user } } });
console.log("models:", models.error ? models.error.detail : JSON.stringify(models.data));

const nobodys = await gateway.GET("/openai/v1/models", { params: { header: { "Keyman-User": 999 } } });
console.log("of nobody:", nobodys.error?.error?.code);

const { data: key, error } = await resolver.POST("/v1/resolve", {
  body: { user_id: user, service: "OPENAI", purpose: "An example" },
});
console.log("resolved:", error ? error.detail : `a key of ${key.api_key.length} characters`);

const missing = await resolver.POST("/v1/resolve", { body: { user_id: user, service: "GROQ" } });
console.log("not there:", missing.error?.status, missing.error?.title);
