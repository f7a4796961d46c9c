// The certified OpenID provider (https://github.com/panva/node-oidc-provider) on loopback, for tests.
//
// Its first argument is the configuration: {issuer, port, algorithm, kid, client}. It makes a key of its own, so a new
// start is a rotation of keys. People log in on the provider's own pages for development, with any name. It prints
// "ready" once it listens, and ends with its standard input, so that it never outlives the tests.
import { generateKeyPairSync } from 'node:crypto'
import Provider from 'oidc-provider'

const { issuer, port, algorithm, kid, client } = JSON.parse(process.argv[2])

const KINDS = { RS256: ['rsa', { modulusLength: 2048 }], ES256: ['ec', { namedCurve: 'P-256' }], EdDSA: ['ed25519', {}] }
const { privateKey } = generateKeyPairSync(...KINDS[algorithm])

const provider = new Provider(issuer, {
  clients: [{ ...client, id_token_signed_response_alg: algorithm, grant_types: ['authorization_code'] }],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: algorithm }] },
  enabledJWA: { idTokenSigningAlgValues: Object.keys(KINDS) },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  findAccount: (_context, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: id, email: `${id}@company.example`, email_verified: true }),
  }),
  features: { backchannelLogout: { enabled: true } },
  cookies: { keys: ['of a provider for tests'] },
})

for (const event of ['server_error', 'backchannel.error']) {
  provider.on(event, (_context, error) => console.error(event, error?.message, error?.cause?.message ?? ''))
}
provider.on('backchannel.success', () => console.error('backchannel.success'))

const server = provider.listen(port, '127.0.0.1', () => console.log('ready'))
process.stdin.resume().on('end', () => {
  server.closeAllConnections()
  process.exit(0)
})
