package pseudoword

import (
	"context"
	"crypto/rand"
	"fmt"

	registryv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/registry/v1"
)

// Resolve resolves a word, `[tenant/]concept[@alias|@n]`, to a version, without its loss curve and recipe.
func (c *Client) Resolve(ctx context.Context, word string) (*registryv1.Version, error) {
	answer, err := c.Registry.ResolveWords(ctx, &registryv1.ResolveWordsRequest{Parent: c.tenant, Words: []string{word}})
	if err != nil {
		return nil, FromCall(err)
	}
	if len(answer.GetWords()) != 1 {
		return nil, damaged("the response does not have exactly one word")
	}
	resolved := answer.GetWords()[0]
	if resolved.GetError() != nil {
		return nil, FromStatus(resolved.GetError())
	}
	return resolved.GetVersion(), nil
}

// Versions returns all versions of a concept, newest first, without their loss curves and recipes.
func (c *Client) Versions(ctx context.Context, concept string) ([]*registryv1.Version, error) {
	var versions []*registryv1.Version
	request := &registryv1.ListVersionsRequest{Parent: c.concept(concept)}
	for {
		page, err := c.Registry.ListVersions(ctx, request)
		if err != nil {
			return nil, FromCall(err)
		}
		versions = append(versions, page.GetVersions()...)
		if page.GetNextPageToken() == "" {
			return versions, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// AliasOptions are the options of SetAlias.
type AliasOptions struct {
	// Etag, if not empty, is the etag that the alias must have; otherwise SetAlias fails with reason ETAG_MISMATCH.
	Etag string
	// Reason is stored in the alias's history; at most 500 characters.
	Reason string
}

// SetAlias points an alias of a concept to one of its versions; it creates the alias if it does not exist.
func (c *Client) SetAlias(
	ctx context.Context, concept, alias string, version int64, options AliasOptions,
) (*registryv1.Alias, error) {
	owner := c.concept(concept)
	set, err := c.Registry.SetAlias(ctx, &registryv1.SetAliasRequest{
		Alias: &registryv1.Alias{
			Name:    fmt.Sprintf("%s/aliases/%s", owner, alias),
			Version: fmt.Sprintf("%s/versions/%d", owner, version),
			Etag:    options.Etag,
		},
		Reason:    options.Reason,
		RequestId: rand.Text(),
	})
	return set, FromCall(err)
}

// concept returns the resource name of a concept of the client's tenant; the servers validate it.
func (c *Client) concept(id string) string { return c.tenant + "/concepts/" + id }
