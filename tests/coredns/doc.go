// Package coredns holds cluster DNS against CoreDNS: both follow the same API and get the same questions.
package coredns
