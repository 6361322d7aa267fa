// Package review serves the questions that clients may ask about identity and
// permission: TokenReview, the SubjectAccessReviews, SelfSubjectRulesReview and
// SelfSubjectReview (authentication.k8s.io and authorization.k8s.io).
//
// A review is a question put as an object: a create request carries the spec,
// its response the status, and nothing is stored. A Reviewer is the storage of
// one kind; it hands the question to the very authenticator and authorizer that
// decide about requests, so that an answer can't differ from what would happen.
package review
