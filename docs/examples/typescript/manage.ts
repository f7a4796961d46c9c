// Stores, lists, replaces and deletes a key of your own, with a personal access token.
// `keyman.ts` is generated from the OpenAPI document of the management plane: see docs/reference/typescript.md.

import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./keyman.js";

type Key = components["schemas"]["KeyInfo"];
type Problem = components["schemas"]["ProblemBody"];

const keyman = createClient<paths>({
  baseUrl: process.env["KEYMAN_URL"] ?? "http://127.0.0.1:8000",
  headers: { Authorization: `Bearer ${process.env["KEYMAN_TOKEN"]}` },
});

/** Turn an error answer into one line: what is wrong, the first invalid field, and the id of the request. */
function describe(problem: Problem): string {
  const fault = problem.errors?.[0];
  const field = fault === undefined ? "" : ` ${fault.field}: ${fault.message}.`;
  return `${problem.status} ${problem.detail}${field} (request ${problem.request_id})`;
}

/** Store a key. The Idempotency-Key lets you send the same request again without storing the key twice. */
async function add(value: string, name: string): Promise<{ key: Key; etag: string }> {
  const { data, error, response } = await keyman.POST("/api/keys", {
    params: { header: { "Idempotency-Key": randomUUID() } },
    body: { service: "OPENAI", api_key: value, name },
  });
  if (error) throw new Error(describe(error));
  return { key: data, etag: response.headers.get("ETag") ?? "" };
}

/** List all keys of a service: a page says in `Link` whether there is another one. */
async function list(service: string): Promise<Key[]> {
  const keys: Key[] = [];
  let cursor: string | undefined;
  do {
    const { data, error, response } = await keyman.GET("/api/keys", {
      params: { query: { service, limit: 2, cursor } },
    });
    if (error) throw new Error(describe(error));
    keys.push(...data);
    const next = /<([^>]*)>; rel="next"/.exec(response.headers.get("Link") ?? "")?.[1];
    cursor = next === undefined ? undefined : new URLSearchParams(next.split("?")[1]).get("cursor") ?? undefined;
  } while (cursor !== undefined);
  return keys;
}

/** Replace the value of a key, unless it has changed since. */
async function replace(key: Key, etag: string, value: string): Promise<Key | Problem> {
  const { data, error } = await keyman.PUT("/api/keys/{key_id}", {
    params: { path: { key_id: key.id }, header: { "If-Match": etag } },
    body: { api_key: value },
  });
  return error ?? data;
}

async function remove(key: Key): Promise<void> {
  const { error } = await keyman.DELETE("/api/keys/{key_id}", { params: { path: { key_id: key.id } } });
  if (error) throw new Error(describe(error));
}

try {
  await add("short", "Refused");
} catch (refused) {
  console.log("refused:", (refused as Error).message.split(" (request")[0]);
}

const { key, etag } = await add("sk-made-up-0123456789abcdef1234", "From TypeScript");
console.log("added:", key.name, key.last_4_chars, key.status);
const another = await add("sk-made-up-0123456789abcdef5678", "Another one");
const third = await add("sk-made-up-0123456789abcdef9abc", "A third one");
console.log("listed:", (await list("OPENAI")).map((one) => one.last_4_chars).join(" "));

const replaced = await replace(key, etag, "sk-made-up-0123456789abcdefWXYZ");
console.log("replaced:", "last_4_chars" in replaced ? replaced.last_4_chars : describe(replaced));
const stale = await replace(key, etag, "sk-made-up-0123456789abcdefstale");
console.log("a second time:", "last_4_chars" in stale ? stale.last_4_chars : stale.title);

const made = [key, another.key, third.key];
for (const one of made) await remove(one);
const left = (await list("OPENAI")).filter((one) => made.some((removed) => removed.id === one.id));
console.log("left of these:", left.length);
