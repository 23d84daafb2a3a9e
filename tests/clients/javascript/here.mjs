// The ways to lead @fal-ai/client to a platform, as docs/clients.md tells them. KEEPWARM_URL and FAL_KEY are what
// `keepwarm env` prints; Node trusts the platform's certificate by NODE_EXTRA_CA_CERTS.
import { createFalClient } from "@fal-ai/client";

const platform = process.env.KEEPWARM_URL;
const credentials = process.env.FAL_KEY;
const services = { "fal.run": "run", "queue.fal.run": "queue", "rest.fal.ai": "rest" };

export function here(url) {
  const { host, pathname, search } = new URL(url);
  return services[host] ? `${platform}/${services[host]}${pathname}${search}` : url;
}

const ways = {
  middleware: () => ({ requestMiddleware: async (request) => ({ ...request, url: here(request.url) }) }),
  proxy: () => ({ proxyUrl: { url: `${platform}/fal/proxy`, when: "always" } }),
  names: () => ({}),
  fetch: () => ({ fetch: (url, init) => fetch(here(url), init) }),
};

export const way = process.env.WAY;

export function client(options = {}) {
  return createFalClient({ credentials, ...ways[way](), ...options });
}
