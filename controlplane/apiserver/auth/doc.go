// Package auth says who a request is from. Its one idea is the order in which
// credentials are looked at (New): a front proxy's word, a client certificate, a
// ServiceAccount token, and for a few paths nobody at all.
//
// Each kind knows for whom its credentials are good. Certificates and the front
// proxy know no audiences: they count for the API server's own. Tokens and
// anonymous answer for themselves.
//
// The folders below:
//
//   - token: who a ServiceAccount token is of, and making such tokens
//   - rbac: what the Roles and bindings allow, and the default ones
//   - abac: what the lines of a policy file allow
//   - node: what a kubelet is allowed
//   - review: the API by which clients ask the above
package auth
